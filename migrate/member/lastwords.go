package member

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

const (
	maxLines     = 20
	maxOtherwise = 5 // lines, if none of them tells of an error
	maxLine      = 300
)

var (
	// Up to 3.4, etcd logs with capnslog: date, time, level (Critical, Error, Warning, Notice, Info, Debug), package.
	textLine = regexp.MustCompile(`^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ ([CEWNID]) \| (.*)$`)
	// What Go and etcd print without a logger when they give up.
	severeLine = regexp.MustCompile(`^\s*(panic:|fatal error:|\[signal |etcd:|etcdmain:|flag provided but not defined|` +
		`error verifying flags|invalid value|conflicting environment variable)`)
	stackLine = regexp.MustCompile(`^(goroutine \d+ \[|\t|.*\.go:\d+|created by |r\w+ +0x[0-9a-f]+$)`)
	// Requests and their keys turn up in warnings about slow ones, mostly.
	mayHoldKeys = regexp.MustCompile(`took too long|too slow|failed to apply request|request "|request=|` +
		`key:|range_end|value:|value_size|/v[23]/|/v3(alpha|beta)/`)
)

// harmlessFields are the fields of a line of JSON that hold no keys and say something: zap's lines have a message that
// is always the same text, and everything else is in fields.
var harmlessFields = []string{"method", "path", "current-server-version", "determined-cluster-version", "error"}

// lastWords picks from etcd's output the last lines that tell why it ended: the messages of errors and panics, or if
// there are none, the last lines of any kind. It leaves out whatever could hold a key or a value.
func lastWords(output []byte) []string {
	var severe, rest []string
	for line := range strings.Lines(string(output)) {
		text, isSevere := readLine(strings.TrimRight(line, "\r\n"))
		switch {
		case text == "":
		case isSevere:
			severe = appendLast(severe, text, maxLines)
		default:
			rest = appendLast(rest, text, maxOtherwise)
		}
	}
	if len(severe) > 0 {
		return severe
	}
	return rest
}

// appendLast appends a line unless it repeats the last one, and keeps the last n.
func appendLast(lines []string, line string, n int) []string {
	if len(lines) > 0 && lines[len(lines)-1] == line {
		return lines
	}
	lines = append(lines, line)
	return lines[max(0, len(lines)-n):]
}

// readLine gives what of a line can be shown, "" for nothing, and whether it tells of an error.
func readLine(line string) (text string, severe bool) {
	if strings.HasPrefix(line, "{") {
		return readJSON(line)
	}
	if m := textLine.FindStringSubmatch(line); m != nil {
		text, severe = m[2], m[1] == "C" || m[1] == "E"
	} else {
		if severe = severeLine.MatchString(line); !severe && stackLine.MatchString(line) {
			return "", false
		}
		text = strings.TrimSpace(line)
	}
	if mayHoldKeys.MatchString(text) {
		return "", false
	}
	return printable(text), severe
}

func readJSON(line string) (text string, severe bool) {
	var fields map[string]any
	if json.Unmarshal([]byte(line), &fields) != nil {
		return "", false
	}
	msg, _ := fields["msg"].(string)
	if msg == "" || mayHoldKeys.MatchString(msg) {
		return "", false
	}
	text = msg
	for _, name := range harmlessFields {
		if v, ok := fields[name].(string); ok && v != "" && !mayHoldKeys.MatchString(v) {
			text += fmt.Sprintf(", %s: %s", name, v)
		}
	}
	switch fields["level"] {
	case "error", "dpanic", "panic", "fatal":
		severe = true
	}
	return printable(text), severe
}

// printable makes a line safe for a terminal and short.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > maxLine {
		s = string(runes[:maxLine]) + "…"
	}
	return strings.TrimSpace(s)
}
