from ._autoencoder import SparseAutoencoder as SparseAutoencoder
from ._bootstrap import bootstrap_floors as bootstrap_floors
from ._published import load_autoencoder as load_autoencoder
from ._resampling import resampled_tables as resampled_tables
from ._statistics import FeatureStatistics as FeatureStatistics
from ._statistics import OutlierRowsWarning as OutlierRowsWarning
from ._tail import PowerLawTail as PowerLawTail
from ._tail import power_law_tail as power_law_tail
