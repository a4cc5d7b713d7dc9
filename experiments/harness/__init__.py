"""What any study runs on: devices, the memo of finished stages, progress, the command line."""
