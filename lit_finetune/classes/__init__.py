"""The names of classes: ImageNet's, a head's, the data's; compare two lists of them.

Names in; an order, or an error that shows both lists, out. Uses no other room.
"""
