"""What introspective features are used for: recognition and calibration so far."""
