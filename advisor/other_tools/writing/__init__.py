"""A plan as the files of another training tool: configuration, data and how it is started.

`rows` reads the plan's data, `tools` holds what one tool alone has (`shared`, what several have),
`page` writes the YAML with comments, `files` puts all into one folder.
"""
