import pickle

import pytest
from small_students import far_away, new_teacher

from geofloor import AblationPredictor, ActivationExtractor, BottleneckPredictor

# Most fits here take a few steps, because how far training comes is not what they test.
pytestmark = pytest.mark.filterwarnings("ignore:.*too few to learn from:sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize(
    "make",
    [
        lambda teacher: ActivationExtractor(teacher, 0),
        lambda teacher: AblationPredictor(teacher, 0),
        BottleneckPredictor,
    ],
)
def test_estimators_that_hold_a_teacher_on_a_gpu_are_read_on_a_cpu(make):
    teacher = new_teacher()
    estimator = make(teacher)
    if isinstance(estimator, ActivationExtractor):
        estimator.fit()
        estimator.model_ = far_away(estimator.model_)
    parameter = "model" if hasattr(estimator, "model") else "teacher"
    estimator.set_params(**{parameter: far_away(teacher)})
    restored = pickle.loads(pickle.dumps(estimator))
    held = getattr(restored, parameter)
    assert {str(tensor.device) for tensor in held.state_dict().values()} == {"cpu"}
