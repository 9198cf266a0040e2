"""How a classifier is trained and measured, whatever its network: the LightningModule's steps.

Batches in; losses and metrics of all pictures out. Uses every package below the classifier.
"""
