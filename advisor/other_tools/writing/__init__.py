"""A plan as the files of another training tool: configuration, data and how it is started.

`rows` reads the plan's data and gives each tool its shape, `layout` says which keys name the data,
`page` writes the YAML with comments, `files` puts all into one folder.
"""
