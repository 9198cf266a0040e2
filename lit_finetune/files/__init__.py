"""Reading files that may come from anybody, and writing files that others read at the same time.

Paths in; plain data, checked bytes, text that is safe in a terminal or a spreadsheet out, or one
sentence that says what a file is. Uses no other room.
"""
