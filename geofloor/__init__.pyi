from . import datasets as datasets
from . import displays as displays
from . import features as features
from . import forecasting as forecasting
from . import language_models as language_models
from . import planning as planning
from . import probing as probing
from . import students as students
from . import theory as theory
from . import toy as toy
from .features import FeatureStatistics as FeatureStatistics
from .features import SparseAutoencoder as SparseAutoencoder
from .forecasting import AffineCalibrator as AffineCalibrator
from .forecasting import LossForecaster as LossForecaster
from .forecasting import PowerLawCalibrator as PowerLawCalibrator
from .language_models import AblationPredictor as AblationPredictor
from .language_models import ActivationExtractor as ActivationExtractor
from .language_models import ActivationStore as ActivationStore
from .language_models import BottleneckPredictor as BottleneckPredictor
from .planning import Plan as Plan
from .planning import plan_distillation as plan_distillation
from .probing import ConceptProbe as ConceptProbe
from .students import DistilledStudent as DistilledStudent
from .theory import FloorPredictor as FloorPredictor
from .toy import ToyModel as ToyModel

__version__: str
