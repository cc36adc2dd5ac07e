"""A property asked of a network."""

from backdoor_audit.model.subject import Subject
from tests.subjects import row_images, seeded


def subject(classifier, clean=None):
    return Subject(classifier, *(clean or row_images()).split(0))


def asked(wanted, classifier, clean=None, *, seed=0, **known):
    return wanted(subject(classifier, clean), generator=seeded(seed), **known)
