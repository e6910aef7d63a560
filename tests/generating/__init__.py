"""What makes the generated files: schemas for editors, pages and a picture for people.

All of it derives from the loaded rules.
"""
