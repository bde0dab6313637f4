"""One file a data set; ``fedjax_tx.data.load`` calls them by name."""

from fedjax_tx.data.sources import shakespeare as shakespeare
