"""The names of classes: ImageNet's, a head's, the data's, and two lists of them compared.

Names in, an order or an error that shows both lists out. Uses only error messages.
"""
