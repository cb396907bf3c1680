"""What people read: numbers with units, aligned tables, pictures as SVG. Nothing here imports the core."""
