package matrix

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
)

// resultsFile is the name of the file with the results in the work dir: a line of JSON with the settings, then one for
// each finished pair. Of two lines for a pair the later one counts.
const resultsFile = "results.jsonl"

// settings are what results must have in common to be of one matrix.
type settings struct {
	Tool        string   `json:"tool"`
	Etcds       []string `json:"etcds"`
	DataDir     string   `json:"dataDir,omitempty"`
	WALDir      string   `json:"walDir,omitempty"`
	Keys        int      `json:"keys"`
	AcceptLoss  []string `json:"acceptLoss,omitempty"`
	V2Leftovers string   `json:"v2Leftovers,omitempty"`
	QuotaBytes  int64    `json:"quotaBytes,omitempty"`
}

func (o Options) settings() settings {
	s := settings{Tool: o.Tool, DataDir: o.DataDir, WALDir: o.WALDir, Keys: o.Keys, V2Leftovers: string(o.V2Leftovers), QuotaBytes: o.QuotaBytes}
	for _, b := range o.Binaries.Binaries {
		s.Etcds = append(s.Etcds, b.Release.String())
	}
	for _, l := range o.AcceptLoss {
		s.AcceptLoss = append(s.AcceptLoss, string(l))
	}
	return s
}

// store is the file with the results.
type store struct{ file *os.File }

// openStore opens it for appending and gives the results that are in it already. A last line that a kill cut off is
// removed.
func openStore(dir string, want settings, resume bool) (*store, map[Pair]Result, error) {
	path := filepath.Join(dir, resultsFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	results, end, err := readResults(f, want)
	switch {
	case err != nil:
	case end > 0 && !resume:
		err = errEarlierRun
	default:
		err = f.Truncate(end)
	}
	if err == nil {
		_, err = f.Seek(end, 0)
	}
	s := &store{f}
	if err == nil && end == 0 {
		err = s.write(want)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return s, results, nil
}

// errEarlierRun is that of results which nobody has asked to go on with.
var errEarlierRun = errors.New("it holds the results of an earlier run")

// errOtherSettings is that of results which another matrix has left.
var errOtherSettings = errors.New("it holds the results of a matrix with other settings, etcds or data")

// readResults gives the results and where the last whole line ends.
func readResults(f *os.File, want settings) (results map[Pair]Result, end int64, err error) {
	r, results := bufio.NewReader(f), map[Pair]Result{}
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) { // or a line that a kill cut off
			return results, end, nil
		}
		if err != nil {
			return nil, 0, err
		}
		if end == 0 {
			var got settings
			if err := json.Unmarshal(line, &got); err != nil {
				return nil, 0, fmt.Errorf("offset 0: %w", err)
			}
			if !reflect.DeepEqual(got, want) {
				return nil, 0, errOtherSettings
			}
		} else {
			var result Result
			if err := json.Unmarshal(line, &result); err != nil {
				return nil, 0, fmt.Errorf("offset %d: %w", end, err)
			}
			results[result.Pair] = result
		}
		end += int64(len(line))
	}
}

// write appends a line, and sees that it is there after a crash.
func (s *store) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := s.file.Write(append(line, '\n')); err != nil {
		return err
	}
	return s.file.Sync()
}

func (s *store) close() error { return s.file.Close() }
