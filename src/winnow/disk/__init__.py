"""Writing to disk: whole files, who owns a folder, and which links leave it."""
