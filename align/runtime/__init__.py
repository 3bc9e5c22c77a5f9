"""The ground floor, on which every room stands; it imports nothing of ours.

The root of all errors, files and folders that take their names whole, JSON that others wrote, locks, what ranks agree
on, typed paths, text for a terminal, secrets kept out of texts.
"""
