// The Python face of a load's progress.
#pragma once

#include <nanobind/nanobind.h>

void bind_progress(nanobind::module_& module);
