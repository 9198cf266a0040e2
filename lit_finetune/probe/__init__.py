"""The linear probe: logistic regression on features, and the head that gives its logits.

A network and a loader, or features and labels in; a `ProbeFit` out. Uses `heads`, `modules`,
`training`.
"""
