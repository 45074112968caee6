"""What is on disk: directories that are whole at any moment, held by one process, and never joined wrongly."""
