package dockerfile

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"
)

var fixtures atomic.Int32

// writeFixture writes what a test is about to build below $FIXTURES: its contexts as archives, its options as JSON.
// It is added to BuildKit's tests by the script `buildkit` beside it.
func writeFixture(ctx context.Context, opt client.SolveOpt) {
	root := os.Getenv("FIXTURES")
	if root == "" {
		return
	}
	test := "unknown"
	callers := make([]uintptr, 32)
	frames := runtime.CallersFrames(callers[:runtime.Callers(2, callers)])
	for {
		frame, more := frames.Next()
		name := frame.Function[strings.LastIndex(frame.Function, "/")+1:]
		for part := range strings.SplitSeq(name, ".") {
			if rest, is := strings.CutPrefix(part, "test"); is && rest != "" && strings.ToUpper(rest[:1]) == rest[:1] {
				test = part
			}
		}
		if !more {
			break
		}
	}
	directory := filepath.Join(root, fmt.Sprintf("%s.%03d", test, fixtures.Add(1)))
	if err := os.MkdirAll(directory, 0o700); err != nil {
		panic(err)
	}
	for name, files := range opt.LocalMounts {
		archive, err := os.Create(filepath.Join(directory, strings.ReplaceAll(name, "/", "_")+".tar"))
		if err != nil {
			panic(err)
		}
		if err := fsutil.WriteTar(ctx, files, archive); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s: %v\n", test, name, err)
		}
		archive.Close()
	}
	options, err := json.Marshal(map[string]any{"attributes": opt.FrontendAttrs, "session": len(opt.Session)})
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(filepath.Join(directory, "options.json"), options, 0o600); err != nil {
		panic(err)
	}
}
