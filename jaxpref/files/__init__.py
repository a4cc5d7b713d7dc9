"""Files that jaxpref writes and reads: npz, JSON, JSON lines and safetensors."""
