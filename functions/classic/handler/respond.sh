#!/bin/sh
echo "answering $Http_Method $Http_Path" >&2
tr a-z A-Z
