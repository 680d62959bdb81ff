"""Capability labels from a language model: asked twice with the answers swapped, kept where it agrees with itself."""

from grmlight.labeling.ask import Asker as Asker
from grmlight.labeling.ask import Question as Question
from grmlight.labeling.endpoint import EndpointAsker as EndpointAsker
from grmlight.labeling.label import Labeled as Labeled
from grmlight.labeling.label import label as label
from grmlight.labeling.label import read_capabilities as read_capabilities
from grmlight.labeling.local import LocalAsker as LocalAsker
