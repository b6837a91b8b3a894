"""eval-anything's two scores of any-modality models: AMU (understanding) and AMG (generation), with intervals."""
