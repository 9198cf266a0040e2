"""Pictures as the network is to see them: orientation, bit depth, and the data config.

Files and Pillow images in, RGB images of 8 bits out. Uses only error messages.
"""
