#!/bin/sh
# Install what the tests run beside Python packages: a real ZooKeeper and Java. Idempotent.
set -eu

if [ -f /usr/share/java/zookeeper.jar ] && command -v java >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "Expected apt-get, found none: install ZooKeeper 3.8 as /usr/share/java/zookeeper.jar and Java 17 or later." >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "Expected to be root to install packages, found $(id -un): run 'sudo apt-get install zookeeper default-jre-headless'." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends zookeeper default-jre-headless
