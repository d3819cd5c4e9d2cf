package member

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

func TestLastWords(t *testing.T) {
	for _, test := range []struct {
		name, output string
		want         []string
	}{
		{"nothing", "", nil},
		{"2.x fatal", "2026-11-20 18:36:41.680552 I | etcdserver: loaded cluster information from store: <nil>\n" +
			"2026-11-20 18:36:41.680590 C | etcdserver: open wal error: file already locked\n",
			[]string{"etcdserver: open wal error: file already locked"}},
		{"3.2 panic", `2026-11-20 18:36:45.680590 C | etcdserver: recovering backend from snapshot error: x
panic: recovering backend from snapshot error: x
	panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x20 pc=0xa7fd43]

goroutine 1 [running]:
github.com/coreos/etcd/etcdserver.NewServer.func1(0xc00022f258, 0xc00022f030)
	github.com/coreos/etcd/etcdserver/server.go:284 +0x43
created by something
`, []string{"etcdserver: recovering backend from snapshot error: x", "panic: recovering backend from snapshot error: x",
			"panic: runtime error: invalid memory address or nil pointer dereference",
			"[signal SIGSEGV: segmentation violation code=0x1 addr=0x20 pc=0xa7fd43]"}},
		{"3.6 panic", `{"level":"info","ts":"2026-11-20T18:36:50Z","caller":"x.go:1","msg":"starting"}
{"level":"panic","ts":"2026-11-20T18:36:50Z","caller":"apply/apply_v2.go:31","msg":"detected disallowed v2 WAL for stage --v2-deprecation=write-only","method":"QGET","key":"/registry/secrets/a","stacktrace":"a\nb"}
panic: detected disallowed v2 WAL for stage --v2-deprecation=write-only
`, []string{"detected disallowed v2 WAL for stage --v2-deprecation=write-only, method: QGET",
			"panic: detected disallowed v2 WAL for stage --v2-deprecation=write-only"}},
		{"flag", "flag provided but not defined: -debug\nusage: etcd [flags]\n",
			[]string{"flag provided but not defined: -debug"}},
		{"only information, the last five lines", "a\nb\nc\nd\ne\nf\n", []string{"b", "c", "d", "e", "f"}},
		{"no line twice in a row", "panic: a\npanic: a\n", []string{"panic: a"}},
		{"a JSON line that is none", "{\"level\":\n", nil},
		{"an escape sequence", "panic: \x1b[31mred\x07\n", []string{"panic:  [31mred"}},
		{"a long line", "panic: " + strings.Repeat("ü", 1000), []string{"panic: " + strings.Repeat("ü", maxLine-7) + "…"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, lastWords([]byte(test.output))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLastWordsHoldNoKeys has the lines in which etcds of all ages name what they were asked for.
func TestLastWordsHoldNoKeys(t *testing.T) {
	const secret = "/registry/secrets/prod/password"
	for _, line := range []string{
		`2026-11-20 18:36:45.680590 W | etcdserver: read-only range request "key:\"` + secret + `\" " with result "range_response_count:1 size:4" took too long (120ms) to execute`,
		`2026-11-20 18:35:30.392728 W | etcdserver: failed to apply request,took 58.617µs,request header:<ID:3 > put:<key:"` + secret + `" value_size:1 >,resp size:25,err is etcdserver: mvcc: database space exceeded`,
		`2026-11-20 18:35:30.601134 W | etcdserver: failed to apply request "header:<ID:31 > put:<key:\"` + secret + `\" value:\"x\" >" with response "size:25" took (399.226µs) to execute, err is lease not found`,
		`2026-11-20 18:35:30.601134 E | etcdserver: apply entries took too long [1.2s for 1 entries] key:"` + secret + `"`,
		`2026-11-20 18:35:30.601134 E | etcdhttp: got unexpected response error (x) for /v2/keys` + secret,
		`{"level":"warn","ts":"2026-11-20T18:35:31Z","caller":"txn/util.go:46","msg":"failed to apply request","took":"126µs","request":"header:<ID:3> put:<key:\"` + secret + `\">","response":"size:2","error":"lease not found"}`,
		`{"level":"warn","ts":"2026-11-20T18:35:31Z","msg":"apply request took too long","took":"1s","prefix":"read-only range ","request":"key:\"` + secret + `\" ","response":"size:6"}`,
		`{"level":"error","ts":"2026-11-20T18:35:31Z","msg":"failed","error":"cannot apply put:<key:\"` + secret + `\">"}`,
		`{"level":"info","ts":"2026-11-20T18:35:31Z","msg":"trace[12] range","detail":"{range_begin:` + secret + `; range_end:; }"}`,
		`{"level":"panic","ts":"2026-11-20T18:36:50Z","msg":"detected disallowed v2 WAL for stage --v2-deprecation=write-only","method":"PUT","path":"/1` + secret + `"}`,
		`2026-11-20 18:35:30.601134 C | mvcc: store.keyindex: tombstone got an unexpected empty keyIndex password`,
		`2026-11-20 18:35:30.601134 E | store: cannot set ` + secret,
		`2026-11-20 18:35:30.601134 E | store: cannot set "password"`,
		"2026-11-20 18:35:30.601134 W | store: a key with a line break \"\npassword\"",
		`panic: cannot set ` + secret,
		`panic: https://127.0.0.1:2379` + secret + ` does not answer`,
	} {
		for _, output := range []string{line + "\n", "panic: before\n" + line + "\n", line + "\npanic: after\n", line + "\nother\n"} {
			if got := fmt.Sprint(lastWords([]byte(output))); strings.Contains(got, "password") {
				t.Errorf("a key shows up in %s", got)
			}
		}
	}
}

// TestLastWordsOfOurDirs: what is below the data dir is no key, and says what is wrong with which file.
func TestLastWordsOfOurDirs(t *testing.T) {
	const line = `panic: open /var/lib/etcd/member/snap/db: permission denied (https://127.0.0.1:2379), and "ETCD_NAME"`
	if diff := cmp.Diff([]string{line}, lastWords([]byte(line+"\n"), "/var/lib/etcd", "")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"panic: open …"}, lastWords([]byte(line+"\n"), "/var/lib/etc", "")); diff != "" {
		t.Error(diff)
	}
}

func TestErrorTellsTheCause(t *testing.T) {
	e := &Etcd{cfg: Config{Release: release(t, "3.2.32")}}
	fmt.Fprint(&e.output, "panic: recovering: database snapshot file path error: x\npanic: runtime error: nil\n[signal SIGSEGV: x]\n")
	err := error(e.fail("exit status 2", ErrEnded))
	want := "etcd 3.2.32: etcd ended unexpectedly (exit status 2): panic: recovering: database snapshot file path error: x"
	if err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if !errors.Is(err, ErrEnded) {
		t.Error("it does not wrap its cause")
	}

	e.output.reset()
	fmt.Fprint(&e.output, "one\ntwo\n")
	if got, want := e.fail("exit status 1", ErrEnded).Error(), "etcd 3.2.32: etcd ended unexpectedly (exit status 1): two"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := e.fail(running, errors.New("slow")).Error(), "etcd 3.2.32: slow (running)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestHints(t *testing.T) {
	for words, want := range map[string]string{
		`walpb: crc mismatch: expected: 1 computed: 2`:                                                         "damaged",
		`2026 W | etcdserver: another etcd process is using "/d/member/snap/db" and holds the file lock.`:      "another etcd",
		`{"level":"info","msg":"db file is flocked by another process, or taking too long"}`:                   "another etcd",
		`write /d/member/wal/0.wal: no space left on device`:                                                   "disk is full",
		`open /d: permission denied`:                                                                           "owner and modes",
		`open /d/member/.touch: read-only file system`:                                                         "read-only",
		`flag provided but not defined: -wal-dir`:                                                              "does not know a flag",
		`etcdmain: conflicting environment variable "ETCD_NAME" is shadowed by corresponding command-line`:     "environment",
		`panic: encoding alphabet includes duplicate symbols`:                                                  "Go 1.21",
		`{"level":"fatal","msg":"discovery failed","error":"membership: too many learner members in cluster"}`: "learner",
		`all is well`: "",
	} {
		if got, _ := hint(words); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s\ngives %q, want %q", words, got, want)
		}
	}
}

func TestTail(t *testing.T) {
	var tail tail
	for i := range 10_000 {
		fmt.Fprintf(&tail, "line %6d of etcd's output\n", i)
	}
	got := string(tail.bytes())
	if n := len(got); n < tailSize-100 || n > 2*tailSize || !strings.HasPrefix(got, "line ") ||
		!strings.HasSuffix(got, "line   9999 of etcd's output\n") {
		t.Errorf("kept %d bytes, from %q to %q", n, got[:40], got[n-40:])
	}
	tail.reset()
	fmt.Fprint(&tail, strings.Repeat("x", 3*tailSize))
	if n := len(tail.bytes()); n > 0 {
		t.Errorf("kept %d bytes of a line without an end", n)
	}
	tail.reset()
	if len(tail.bytes()) > 0 {
		t.Error("reset keeps something")
	}
}

func FuzzLastWords(f *testing.F) {
	f.Add([]byte("2026-11-20 18:36:41.680590 C | etcdserver: open wal error: file already locked\npanic: x\n"))
	f.Add([]byte(`{"level":"fatal","msg":"a","error":"b"}` + "\n\tpanic: y\ngoroutine 1 [running]:\n"))
	f.Add([]byte("\xff\xfe{\x00\n{\"msg\":\"\\u0007\",\"level\":\"error\"}"))
	f.Fuzz(func(t *testing.T, output []byte) {
		lines := lastWords(output)
		if len(lines) > maxLines {
			t.Errorf("%d lines", len(lines))
		}
		for _, line := range lines {
			if n := len([]rune(line)); n == 0 || n > maxLine+1 {
				t.Errorf("a line of %d characters", n)
			}
			if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("%q cannot be printed", line)
			}
		}
	})
}
