"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# Examples are the same each time, and machines may be busy.
settings.register_profile(
    "here",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("here")
