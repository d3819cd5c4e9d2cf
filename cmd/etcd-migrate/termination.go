package main

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// defaultTerminationLog is a container's terminationMessagePath, if its manifest names no other.
const defaultTerminationLog = "/dev/termination-log"

// The kubelet shows 4096 bytes of a termination message and keeps 12 KiB of all containers of a pod together.
const maxTerminationMessage = 2000

// noteTermination leaves the error where the kubelet looks for it. It makes no file and follows no link: where there is
// none, nobody asks. What fails here has been said on standard error already.
func noteTermination(path string, err error) {
	if path == "" {
		return
	}
	f, openErr := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if openErr != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return
	}
	_, _ = f.WriteString(terminationMessage(err))
}

// terminationMessage says what happened, and what to do about it even where the former has to be cut short.
func terminationMessage(err error) string {
	var e *migrate.Error
	if !errors.As(err, &e) {
		return printable("etcd-migrate: "+err.Error(), maxTerminationMessage)
	}
	rest := *e
	rest.Op, rest.Err = "", errors.New("")
	after := printable(strings.TrimPrefix(rest.Error(), "; "), maxTerminationMessage*3/4)
	what := e.Err.Error()
	if e.Op != "" {
		what = e.Op + ": " + what
	}
	what = printable("etcd-migrate: "+what, maxTerminationMessage-len(after)-2)
	if after == "" {
		return what
	}
	return what + "; " + after
}

// printable makes one line of a text, of at most so many bytes.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	const mark = "…"
	if len(s) <= limit {
		return s
	}
	s = s[:limit-len(mark)]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + mark
}
