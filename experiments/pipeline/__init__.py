"""The settings of the study, and its pipeline from experts to evaluation."""
