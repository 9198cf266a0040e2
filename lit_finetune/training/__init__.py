"""Train and evaluate a classifier with any network: the LightningModule's steps.

Batches in; losses and metrics of all images out. Uses every package below the classifier.
"""
