"""What one tool alone has; one module a tool, found by the tool's id (writer.py)."""
