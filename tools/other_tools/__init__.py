"""The key tables of other training tools (rules/tools/TOOL/RELEASE.yaml), made from their own
classes.
"""
