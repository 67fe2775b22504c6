"""The names of `modeling` that need Keras; `modeling/__init__.py` looks them up here when they are first asked for."""

from modeling.body import Backbone as Backbone
from modeling.decoder import Decoder as Decoder
from modeling.losses import cross_entropy as cross_entropy
from modeling.model import ClassifierModel as ClassifierModel
from modeling.model import LanguageModel as LanguageModel
from modeling.model import PretrainingModel as PretrainingModel
from modeling.model import SpanModel as SpanModel
from modeling.model import TaggerModel as TaggerModel
from modeling.randomness import fold_in as fold_in
from modeling.randomness import seeded as seeded
from modeling.variables import Initialization as Initialization
from modeling.variables import count_parameters as count_parameters
from modeling.variables import declared as declared
from modeling.variables import named_variables as named_variables
from modeling.variables import variable_shapes as variable_shapes
