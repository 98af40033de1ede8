"""`make images` and `make images-test`: builds the images, and tries each as a pod runs it.

Needs Python 3.11 and its standard library only, so that images are built without the gigabytes of `make setup`.
"""
