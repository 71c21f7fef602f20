"""What is measured side by side; nothing imports this room."""
