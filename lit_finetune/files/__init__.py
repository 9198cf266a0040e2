"""Files that somebody else may have written, and files that others may read while we write.

Paths in; plain data, checked bytes, text that is safe in a terminal or a spreadsheet out, or one
sentence that says what the file is. Uses no other package.
"""
