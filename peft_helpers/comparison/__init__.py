"""PEFT methods and baselines, trained and tested alike."""
