"""Images as a network expects them: orientation, bit depth, and the data config.

Files and Pillow images in, RGB images of 8 bits out. Uses `checkpoints`.
"""
