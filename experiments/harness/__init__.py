"""What runs a study and knows none: devices, the memo of finished stages, progress, the command line."""
