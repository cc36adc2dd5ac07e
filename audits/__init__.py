"""The shipped suite: each file asks one question of the audited model, with the numbers that answers are judged by.

Copy the folder, change a number, leave a file out, add one of your own: ``--audit-suite=FOLDER`` asks what it holds.
"""
