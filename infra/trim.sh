#!/bin/sh
# Leaves out of the image what no task reads: headers, test programs and test suites of packages.
set -eu
cd "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo /opt/b4m > b4m-code.pth

find torch/bin -mindepth 1 ! -name torch_shm_manager -delete
rm -rf torch/include torch/share torch/test pyarrow/include pyarrow/tests
for package in matplotlib networkx numpy pandas scipy sklearn sympy; do
  find "$package" -type d -name tests -prune -exec rm -rf {} +
done
# Linkers want static libraries; nothing is linked here.
find . -name '*.a' -delete
