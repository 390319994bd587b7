"""From the official files of a data set to an annotation: readers, rules, images, the manifest.

One path: a reader makes a Source, rows.py makes rows of it, images.py brings its images, annotation.py writes and compares.
"""
