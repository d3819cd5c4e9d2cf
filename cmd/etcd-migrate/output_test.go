package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/etcd-migrate/etcd-migrate/migrate"
)

// TestProgressBar: on a terminal there is a bar for what takes long, and none anywhere else.
func TestProgressBar(t *testing.T) {
	master, terminal := openTerminal(t)
	show := func(to *os.File) {
		was := os.Stderr
		defer func() { os.Stderr = was }()
		os.Stderr = to
		out := newOutput(outputFlags{LogFormat: "auto"})
		for _, e := range []migrate.Event{
			{Kind: migrate.EventProgress, What: "prove", Unit: migrate.UnitRecords, Done: 5, Total: 5}, // over before it is seen
			{Kind: migrate.EventProgress, What: "backup", Unit: migrate.UnitBytes, Done: 1 << 20, Total: 4 << 20},
			{Kind: migrate.EventProgress, What: "backup", Unit: migrate.UnitBytes, Done: 4 << 20, Total: 4 << 20},
			{Kind: migrate.EventBackup, Backup: "/b"},
			{Kind: migrate.EventProgress, What: "etcd", Unit: migrate.UnitLines, Done: 1},
		} {
			out.observe(e)
		}
	}
	show(terminal)
	if err := terminal.Close(); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(master) // which ends with EIO, because nobody holds the other side any more
	for _, want := range []string{"backup ", "4.00 MiB / 4.00 MiB", "100.00%", "backup: /b\r\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the terminal does not show %q: %q", want, b)
		}
	}
	for _, not := range []string{"prove", "etcd", `"msg"`} {
		if strings.Contains(string(b), not) {
			t.Errorf("the terminal shows %q: %q", not, b)
		}
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	show(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(r)
	if err != nil || strings.Count(string(b), "\n") != 1 || !strings.Contains(string(b), `"msg":"backup is in place"`) {
		t.Errorf("a log gets %q, %v", b, err)
	}
}

// openTerminal makes a pseudoterminal (pts(4)) of 100 columns.
func openTerminal(t *testing.T) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("there are no pseudoterminals here: ", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	return master, terminal
}
