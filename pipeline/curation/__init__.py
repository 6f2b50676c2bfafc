"""What people look for in a folder of images: duplicates, outliers, wrong labels, clusters.

Each is found in the graph of nearest neighbours of the searched vectors. `subject.py` opens what is looked at.
"""
