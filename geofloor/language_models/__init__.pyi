from ._ablation import AblationPredictor as AblationPredictor
from ._bottleneck import BottleneckPredictor as BottleneckPredictor
from ._divergence import distillation_kl as distillation_kl
from ._extractor import ActivationExtractor as ActivationExtractor
from ._store import ActivationStore as ActivationStore
from ._tokens import token_blocks as token_blocks
from ._zero_width import zero_width_kl as zero_width_kl
