// How well does each text fit an image?
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.6
//	go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1
//	buf generate ../../protos --path ../../protos/sightline_scorer
//	go run . 127.0.0.1:50051 cat.jpg "a cat on a sofa" "a dog in the rain"
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // client-side health checks
	"google.golang.org/grpc/status"

	pb "sightline.example/scorerpb"
)

// Balancing over all addresses, leaving out those that say NOT_SERVING; retries of what is away.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "healthCheckConfig": {"serviceName": "sightline_scorer.v1.ScorerService"},
  "methodConfig": [{
    "name": [{"service": "sightline_scorer.v1.ScorerService", "method": "Score"}],
    "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]}
  }]
}`

func main() {
	target, image, texts := os.Args[1], os.Args[2], os.Args[3:]
	if err := score(target, image, texts); err != nil {
		fmt.Fprintln(os.Stderr, told(err))
		os.Exit(1)
	}
}

func score(target, image string, texts []string) error {
	content, err := os.ReadFile(image)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient(target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := pb.NewScorerServiceClient(connection).Score(ctx, &pb.ScoreRequest{
		Image: &pb.Image{Source: &pb.Image_Content{Content: content}},
		Texts: texts,
	})
	if err != nil {
		return err
	}
	for k, one := range answer.Scores {
		fmt.Printf("%6.2f  %s\n", one.ClipScore, texts[k])
	}
	return nil
}

// told gives the status with the reason of google.rpc.ErrorInfo and the wait of google.rpc.RetryInfo.
func told(err error) string {
	told := status.Convert(err)
	text := fmt.Sprintf("%s: %s", told.Code(), told.Message())
	for _, detail := range told.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			text += " (" + detail.Reason + ")"
		case *errdetails.RetryInfo:
			text += fmt.Sprintf(", try again in %s", detail.RetryDelay.AsDuration())
		}
	}
	return text
}
