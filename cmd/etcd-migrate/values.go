package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/alecthomas/kong"
	"github.com/dustin/go-humanize"
)

// The values of flags and variables that are checked while they are parsed, so that what makes no sense is refused before
// any data is looked at.

// quotaValue is a size such as 8GiB. Below 0 it means no quota, as etcd's own --quota-backend-bytes does.
type quotaValue int64

// UnmarshalText is called by kong.
func (q *quotaValue) UnmarshalText(text []byte) error {
	if n, err := strconv.ParseInt(string(text), 10, 64); err == nil && n < 0 {
		*q = -1
		return nil
	}
	n, err := humanize.ParseBytes(string(text))
	if err == nil && n > math.MaxInt64 {
		err = errors.New("it is beyond what etcd can count")
	}
	*q = quotaValue(n)
	return err
}

// durationValue is a time of at least a second: etcd counts a TTL in seconds, and nothing that there is a limit for is done
// in less.
type durationValue time.Duration

// UnmarshalText is called by kong.
func (d *durationValue) UnmarshalText(text []byte) error {
	n, err := time.ParseDuration(string(text))
	if err == nil && n < time.Second {
		err = fmt.Errorf("%s is less than a second", n)
	}
	*d = durationValue(n)
	return err
}

// countValue is a number of things.
type countValue int

// UnmarshalText is called by kong.
func (c *countValue) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 0 {
		return fmt.Errorf("%q is not a number from 0 on", text)
	}
	*c = countValue(n)
	return nil
}

// levelValue is a level of the log, in capital letters or in small ones.
type levelValue slog.Level

// UnmarshalText is called by kong.
func (l *levelValue) UnmarshalText(text []byte) error {
	if (*slog.Level)(l).UnmarshalText(text) != nil {
		return fmt.Errorf("%q is not one of debug, info, warn, error", text)
	}
	return nil
}

// ignoreEmptyVariables takes an empty variable for one that is not set, as etcd does: a template has the line for it, and
// no value. Kong would take it for a value, which for a number is none.
func ignoreEmptyVariables(k *kong.Kong) error {
	return kong.Visit(k.Model, func(node kong.Visitable, next kong.Next) error {
		if flag, ok := node.(*kong.Flag); ok {
			flag.Tag.Envs = slices.DeleteFunc(slices.Clone(flag.Tag.Envs), func(name string) bool {
				value, set := os.LookupEnv(name)
				return set && value == ""
			})
		}
		return next(nil)
	})
}
