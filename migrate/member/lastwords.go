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
		`key:|range_end|value:|value_size|/v[23]/|/v3(alpha|beta)/|keyIndex|lease item`)
	// A quoted string or a path can be a key; the names of variables and the files in the data dir are none.
	suspect = regexp.MustCompile(`"[^"]*("|$)|(^|[\s'=({\[,:<>])/[^\s"')}\],;<>]*`)
	ownName = regexp.MustCompile(`^"ETCD_[A-Z0-9_]+"$`)
)

// harmlessFields are the fields of a line of JSON that hold no keys and say something: zap's lines have a message that
// is always the same text, and everything else is in fields.
var harmlessFields = []string{"method", "current-server-version", "determined-cluster-version", "error"}

// lastWords picks from etcd's output the last lines that tell why it ended: the messages of errors and panics, or if
// there are none, the last lines of any kind. It leaves out whatever could hold a key or a value: whole lines, and of the
// others what follows the first quoted string or path that is not below one of dirs.
func lastWords(output []byte, dirs ...string) []string {
	var severe, rest []string
	// What follows a line of the logger and is not in its form can be the rest of it: there can be a line break in a key.
	logged := false
	for line := range strings.Lines(string(output)) {
		line = strings.TrimRight(line, "\r\n")
		ofLogger := strings.HasPrefix(line, "{") || textLine.MatchString(line)
		if logged = logged || ofLogger; logged && !ofLogger && !severeLine.MatchString(line) {
			continue
		}
		text, isSevere := readLine(line)
		text = cutSuspect(text, dirs)
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

// cutSuspect cuts a text off where something begins that could be a key.
func cutSuspect(text string, dirs []string) string {
	for _, at := range suspect.FindAllStringIndex(text, -1) {
		found := text[at[0]:at[1]]
		if found[0] == '"' {
			if ownName.MatchString(found) || isBelow(strings.Trim(found, `"`), dirs) {
				continue
			}
			return cut(text[:at[0]])
		}
		path := found[strings.IndexByte(found, '/'):]
		host := strings.TrimPrefix(path, "//")
		if isBelow(path, dirs) || host != path && !strings.Contains(host, "/") { // the host of a URL
			continue
		}
		return cut(text[:at[1]-len(path)])
	}
	return text
}

func cut(text string) string {
	if text = strings.TrimSpace(text); text == "" {
		return ""
	}
	return text + " …"
}

func isBelow(path string, dirs []string) bool {
	for _, dir := range dirs {
		if dir != "" && (path == dir || strings.HasPrefix(path, dir+"/")) {
			return true
		}
	}
	return false
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
