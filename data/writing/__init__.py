"""Writing pretraining records: on the cores of this machine (`local`), or on a cluster under Apache Beam (`beam`)."""
