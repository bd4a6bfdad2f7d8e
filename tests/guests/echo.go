// SPDX-License-Identifier: Apache-2.0

// echo server PORT | echo client PORT | echo self: an echo server for any number of connections, each with its goroutine,
// and a client with 100 goroutines, each with its connection, that checks every byte. `self` is both in one process.
package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

const (
	connections = 100
	rounds      = 60
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			buf := make([]byte, 40000)
			for {
				n, err := conn.Read(buf)
				if err == io.EOF {
					return
				}
				must(err)
				_, err = conn.Write(buf[:n])
				must(err)
			}
		}()
	}
}

func talk(address string, seed int64) {
	random := rand.New(rand.NewSource(seed))
	conn, err := net.Dial("tcp", address)
	must(err)
	defer conn.Close()
	for i := 0; i < rounds; i++ {
		sent := make([]byte, 1+random.Intn(60000))
		random.Read(sent)
		go func() {
			_, err := conn.Write(sent)
			must(err)
		}()
		got := make([]byte, len(sent))
		_, err := io.ReadFull(conn, got)
		must(err)
		if !bytes.Equal(sent, got) {
			must(fmt.Errorf("connection %d, round %d: bytes differ", seed, i))
		}
		if i%20 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	// A deadline that passes is Go's own timer, not the socket's.
	must(conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)))
	_, err = conn.Read(make([]byte, 1))
	if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
		must(fmt.Errorf("wanted a time-out, got %v", err))
	}
}

func client(address string) {
	var all sync.WaitGroup
	for i := 0; i < connections; i++ {
		all.Add(1)
		go func(seed int64) {
			defer all.Done()
			talk(address, seed)
		}(int64(i))
	}
	all.Wait()
	fmt.Println("ok")
}

func main() {
	address := "127.0.0.1:0"
	if len(os.Args) > 2 {
		address = "127.0.0.1:" + os.Args[2]
	}
	if os.Args[1] == "client" {
		client(address)
		return
	}
	listener, err := net.Listen("tcp", address)
	must(err)
	if os.Args[1] == "self" {
		go serve(listener)
		client(listener.Addr().String())
		return
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go serve(listener)
	<-stop
}
