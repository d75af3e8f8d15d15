"""The fixtures of Buildah's conformance tests: its table of Go values, evaluated by Go itself.

The table and the callbacks that prepare contexts are cut out of conformance_test.go and compiled with stand-ins for the
few names they use of other packages.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

DATE = 1485449953

STANDINS = {
    "copier": """package copier
import "syscall"
func Lsetxattrs(path string, attributes map[string]string) error {
	for name, value := range attributes {
		if err := syscall.Setxattr(path, name, []byte(value), 0); err != nil { return err }
	}
	return nil
}
""",
    "require": """package require
import "testing"
func NoError(t *testing.T, err error, _ ...any) {
	if err != nil { panic(err) }
}
func NoErrorf(t *testing.T, err error, _ string, _ ...any) { NoError(t, err) }
""",
    "types": """package types
type OptionalBool byte
const ( OptionalBoolUndefined OptionalBool = iota; OptionalBoolTrue; OptionalBoolFalse )
""",
    "docker": """package docker
import "time"
type BuilderVersion string
type Port string
type HealthConfig struct {
	Test []string `json:",omitempty"`
	Interval, Timeout, StartPeriod time.Duration `json:",omitempty"`
	Retries int `json:",omitempty"`
}
type Config struct {
	User string `json:",omitempty"`
	ExposedPorts map[Port]struct{} `json:",omitempty"`
	StopSignal string `json:",omitempty"`
	StopTimeout int `json:",omitempty"`
	Env []string `json:",omitempty"`
	Cmd []string
	Shell []string `json:",omitempty"`
	Healthcheck *HealthConfig `json:",omitempty"`
	OnBuild []string `json:",omitempty"`
	Labels map[string]string `json:",omitempty"`
	Volumes map[string]struct{} `json:",omitempty"`
	WorkingDir string `json:",omitempty"`
	Entrypoint []string
}
""",
}

HEAD = """package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fixtures/copier"
	"fixtures/docker"
	"fixtures/require"
	"fixtures/types"
)

var _ = errors.New
var _ = bytes.NewReader
var _ = io.Copy

const (
	cISUID = 0o4000
	cISGID = 0o2000
	cISVTX = 0o1000
	xattrPAXRecordNamespace = "SCHILY.xattr."
)

var testDate = time.Unix(1485449953, 0)
var yes = true
var contextCanDoXattrs, storageCanDoXattrs = &yes, &yes

func selinuxMountFlag() string { return "" }

func main() {
	if len(os.Args) == 3 {
		number, _ := strconv.Atoi(os.Args[1])
		if err := internalTestCases[number].tweakContextDir(&testing.T{}, os.Args[2], "", ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var cases, commits []any
	for _, test := range internalTestCases {
		cases = append(cases, map[string]any{
			"name": test.name, "contents": test.dockerfileContents, "dockerfile": test.dockerfile, "context": test.contextDir,
			"tweak": test.tweakContextDir != nil, "fails": test.shouldFailAt != 0, "failure": test.failureRegex,
			"docker": !test.withoutDocker, "buildkit": test.dockerUseBuildKit, "mounts": len(test.transientMounts) > 0,
			"both": test.testUsingVolumes || test.testUsingSetParent, "arguments": test.buildArgs,
		})
	}
	for _, test := range commitCases {
		commits = append(commits, map[string]any{
			"name": test.description, "changes": test.changes, "config": test.config,
			"derived_changes": test.derivedChanges, "derived_config": test.derivedConfig,
		})
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"cases": cases, "commits": commits})
}

"""


def cut(text: str, begin: str, end: str) -> str:
    start = text.index(begin)
    return text[start : text.index(end, start) + len(end)]


class Buildah:
    """The table, and contexts by its rows."""

    def __init__(self, source: Path, work: Path, go: str):
        tests = source / "tests" / "conformance"
        self.data = tests / "testdata"
        self.program = work / "buildah-fixtures"
        module = work / "buildah-go"
        shutil.rmtree(module, ignore_errors=True)
        for name, code in STANDINS.items():
            (module / name).mkdir(parents=True)
            (module / name / f"{name}.go").write_text(code)
        (module / "go.mod").write_text("module fixtures\n\ngo 1.22\n")
        text = (tests / "conformance_test.go").read_text()
        kinds = cut(text, "type (\n\ttestCaseTweakContextDirFn", "\n)\n")
        table = cut(text, "var internalTestCases = []testCase{", "\n}\n")
        commits = cut(text, "\ttestCases := []struct {", "\n\t}\n\n")
        commits = commits.replace("testCases := ", "var commitCases = ", 1)
        (module / "main.go").write_text(HEAD + kinds + table + commits)
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
        subprocess.run([go, "build", "-o", self.program, "."], cwd=module, env=environment, check=True)
        read = json.loads(subprocess.run([self.program], stdout=subprocess.PIPE, check=True).stdout)
        self.cases, self.commits = read["cases"], read["commits"]

    def prepare(self, number: int, context: Path) -> str:
        """Makes the context of a row; returns the Dockerfile's path in it."""
        case = self.cases[number]
        dockerfile = case["dockerfile"] or "Dockerfile"
        if case["context"]:
            shutil.copytree(self.data / case["context"], context, symlinks=True)
        else:
            context.mkdir(parents=True)
            if case["dockerfile"]:
                shutil.copy(self.data / dockerfile, context / Path(dockerfile).name)
                dockerfile = Path(dockerfile).name
        if case["context"] and not (context / dockerfile).exists() and not case["contents"]:
            dockerfile = Path(dockerfile).name
        for path in [context, *context.rglob("*")]:
            os.utime(path, (DATE, DATE), follow_symlinks=False)
        if case["tweak"]:
            subprocess.run([self.program, str(number), context], check=True)
        contents = case["contents"] or (context / dockerfile).read_text()
        # Images are here by tag, and front ends are no images of ours.
        contents = re.sub(r"(?m)^#\s*syntax=.*\n", "", re.sub(r"@sha256:[0-9a-f]{64}", "", contents))
        (context / dockerfile).write_text(contents)
        os.utime(context / dockerfile, (DATE, DATE))
        os.utime(context, (DATE, DATE))
        return dockerfile
